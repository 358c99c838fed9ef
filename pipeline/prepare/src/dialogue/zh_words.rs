//! Chinese words the rules know. Text is read by these lists alone; a clause they do not cover is not asked about.

use super::wording::Kind;

pub(super) const PLACES: [&str; 28] = [
    "左上角",
    "右上角",
    "左下角",
    "右下角",
    "左上方",
    "右上方",
    "左下方",
    "右下方",
    "左侧",
    "右侧",
    "左边",
    "右边",
    "正中间",
    "正中央",
    "中间",
    "中央",
    "中心",
    "顶部",
    "底部",
    "上方",
    "下方",
    "前景",
    "背景",
    "远处",
    "近处",
    "前方",
    "后方",
    "两侧",
];
/// Syllables that make a place of a noun: `桌上`, `路边`, `窗外`.
pub(super) const LOCALIZERS: &str = "上下里中内外旁边前后间";
/// The image as a whole is no place in it.
pub(super) const WHOLE: [&str; 14] = [
    "图片里",
    "图片中",
    "图中",
    "图里",
    "画面中",
    "画面里",
    "照片里",
    "照片中",
    "画面上",
    "图片上",
    "图片",
    "画面",
    "照片",
    "整个画面中",
];
pub(super) const COLOURS: [&str; 20] = [
    "红色",
    "绿色",
    "蓝色",
    "黄色",
    "紫色",
    "黑色",
    "白色",
    "灰色",
    "橙色",
    "粉色",
    "棕色",
    "青色",
    "银色",
    "金色",
    "粉红色",
    "褐色",
    "米色",
    "橘色",
    "咖啡色",
    "米白色",
];
/// Syllables before a colour that belong to it.
pub(super) const SHADES: &str = "深浅淡亮暗鲜嫩墨";
pub(super) const NUMERALS: &str = "一二两三四五六七八九十";
pub(super) const CLASSIFIERS: &str = "个只条张辆座位名棵朵件把块本匹架头艘盏扇幅栋株顶根支台束间家面尊";
/// A noun ends where one of these begins.
pub(super) const NOUN_ENDS: &str = "的在是和与有上下里中着了、：“”（）及";
/// Verbs that may follow a noun phrase at once.
pub(super) const VERBS: [&str; 48] = [
    "停放", "停", "坐", "站立", "站", "躺", "摆放", "摆", "放置", "放", "挂", "趴", "蹲", "矗立", "坐落", "位于", "立",
    "盛开", "开得", "飘", "飞", "漂", "正", "映", "显得", "围", "铺", "覆盖", "环绕", "排列", "堆", "散落", "伸", "沿",
    "点缀", "靠", "依", "走", "倒映", "悬", "戴", "穿", "拿", "抱", "握", "举", "撑", "牵",
];
/// Verbs after which `在` tells where something is.
pub(super) const STAYS: [&str; 18] = [
    "停放", "停靠", "停", "坐", "站立", "站", "躺", "摆放", "摆", "放置", "放", "悬挂", "挂", "趴", "蹲", "矗立",
    "坐落", "漂浮",
];
/// Verbs between a place and what stands there, besides `是` and `有`.
pub(super) const STANDS: [&str; 18] = [
    "停着",
    "摆放着",
    "摆着",
    "放着",
    "挂着",
    "悬挂着",
    "矗立着",
    "立着",
    "躺着",
    "趴着",
    "铺着",
    "堆放着",
    "种着",
    "长着",
    "飘着",
    "停放着",
    "漂浮着",
    "可以看到",
];
/// Last syllables of words for things and beings that captions speak of.
pub(super) const HEADS: &str = "人子孩员师者手贩察生客童工士兵性长妇民娘郎宾狗犬猫鸟马牛羊鸡鸭鱼鹅象熊鹿猴兔虎狮蝶蜂\
                                车船艇机轮舟帆桥路街道轨站牌灯杆柱塔楼房屋墙门窗厦寺庙亭宫堡殿院店铺馆摊棚顶檐阶梯栏篱\
                                山岭峰谷丘崖石岩沙滩海湖河江溪水浪瀑泉岛云雾雪冰月阳空光树木林草花叶枝竹藤苗田野地园\
                                衣裙裤帽鞋袜巾镜包袋箱套装服衫袍带表链冠盔靴\
                                椅凳桌床柜架台沙发席垫毯帘布灯具杯碗盘碟瓶壶锅刀叉勺筷盒罐桶篮筐盆\
                                饭面包糕饼果蔬菜肉蛋汤茶酒料糖瓜豆茄蕉橙莓梨桃\
                                书本纸笔画照片牌标志字条旗伞球拍板琴鼓吉他屏幕钟秤绳网\
                                额匾箱形环纹图案物品件摆设雕塑像碑座体面厅室亩层排席报器械";
/// Endings of words for those who act.
pub(super) const BEINGS: [&str; 66] = [
    "人", "男子", "女子", "男性", "女性", "男孩", "女孩", "孩子", "小孩", "儿童", "婴儿", "母亲", "父亲", "妈妈",
    "爸爸", "奶奶", "爷爷", "店员", "店主", "员", "师", "者", "歌手", "选手", "骑手", "水手", "鼓手", "摊贩", "商贩",
    "警察", "学生", "医生", "先生", "女生", "男生", "乘客", "游客", "顾客", "旅客", "工", "士", "士兵", "狗", "犬",
    "猫", "鸟", "马", "牛", "羊", "鸡", "鸭", "鹅", "鱼", "大象", "熊", "鹿", "猴子", "兔子", "骆驼", "妇女", "孩童",
    "渔民", "新娘", "新郎", "宾客", "情侣",
];
pub(super) const PRONOUNS: [&str; 4] = ["他", "她", "它", "其"];
/// Syllables that make a subject depend on what was said before.
pub(super) const DEPENDENT: &str = "他她它其这那此该们";
pub(super) const WEARS: [(&str, &str); 6] = [
    ("佩戴着", "佩戴着"),
    ("身穿", "穿着"),
    ("身着", "穿着"),
    ("头戴", "头上戴着"),
    ("穿着", "穿着"),
    ("戴着", "戴着"),
];
pub(super) const HOLDS: [(&str, &str); 14] = [
    ("手里拿着", "手里拿着"),
    ("手中拿着", "手里拿着"),
    ("手持", "手里拿着"),
    ("手拿", "手里拿着"),
    ("手握", "手里握着"),
    ("拿着", "拿着"),
    ("握着", "握着"),
    ("抱着", "抱着"),
    ("牵着", "牵着"),
    ("提着", "提着"),
    ("背着", "背着"),
    ("撑着", "撑着"),
    ("捧着", "捧着"),
    ("举着", "举着"),
];
/// Between the one who holds and the verb.
pub(super) const IN_HAND: [&str; 6] = ["手里", "手中", "手上", "怀里", "怀中", "双手"];
pub(super) const MATERIALS: [&str; 22] = [
    "木质",
    "木制",
    "石质",
    "石砌",
    "石制",
    "砖砌",
    "红砖",
    "金属",
    "玻璃",
    "皮质",
    "皮革",
    "塑料",
    "大理石",
    "陶瓷",
    "竹制",
    "竹编",
    "铁艺",
    "藤编",
    "布艺",
    "混凝土",
    "不锈钢",
    "青石",
];
pub(super) const MADE: [&str; 4] = ["制成", "搭建而成", "砌成", "编成"];
pub(super) const WRITES: [&str; 8] = ["书写着", "写着", "印着", "刻着", "标着", "写有", "印有", "标有"];
pub(super) const QUOTES: [(char, char); 4] = [('“', '”'), ('「', '」'), ('"', '"'), ('《', '》')];
pub(super) const VAGUE: [&str; 14] =
    ["几", "许多", "很多", "一些", "各种", "一排", "一群", "一片", "一层", "数", "若干", "不少", "多", "成排"];

/// Words that tell what a clause as a whole speaks of.
pub(super) const TOPICS: [(Kind, &[&str]); 5] = [
    (
        Kind::Weather,
        &[
            "天气",
            "晴朗",
            "阳光明媚",
            "阳光灿烂",
            "多云",
            "阴天",
            "乌云",
            "下雨",
            "下雪",
            "雨天",
            "天空湛蓝",
            "蓝天白云",
        ],
    ),
    (
        Kind::Time,
        &[
            "夜晚", "夜色", "夜幕", "傍晚", "黄昏", "清晨", "早晨", "日落", "日出", "夕阳", "午后", "秋天", "秋季",
            "冬季", "冬天", "春天", "春季", "夏天", "夏季",
        ],
    ),
    (Kind::Mood, &["氛围", "气氛", "气息", "给人"]),
    (Kind::Style, &["风格", "黑白照片", "油画", "水彩", "插画", "卡通", "素描", "版画"]),
    (Kind::View, &["俯视", "俯拍", "航拍", "仰视", "仰拍", "鸟瞰", "特写", "视角"]),
];
